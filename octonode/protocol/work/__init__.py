"""What can be asked for besides chat: one page a category, each skill's request and result defined once.

The same records cross the API, the wire and the line to a worker; `records` reads and writes them, `skills.SKILLS`
lists them. Spec: protocols/skills.md.
"""
