"""Readers of model files' headers: bounded work and memory for any bytes, no library of any format. Sans-IO.

Entry: `octonode.models.formats`. Page: protocols/manifest.md, section Formats.
"""
