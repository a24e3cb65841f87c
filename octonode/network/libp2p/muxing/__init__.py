"""Yamux of our own, wire-compatible with https://github.com/libp2p/specs/tree/master/yamux (protocols/decisions/0009).

`frames`, `streams`, `windows` and `session` are sans-IO: bytes in, events out. `connection` and `muxed` are the thin
trio shell round them, in the shape that py-libp2p asks of a muxer.
"""
