"""A mirror: any device of a site fetches each block once from far away, for all others.

It is trusted for nothing. Blocks are encrypted and named by their digests, metadata is signed;
a mirror that lies is found out and left, and whoever reads from it learns which blocks a site uses.
"""
