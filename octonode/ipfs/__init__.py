"""Blocks by content address: CIDs, UnixFS, CAR, and the HTTP gateway that hands blocks on."""
