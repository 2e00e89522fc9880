"""The HTTP face of this app: what programs and servers report and ask, and what the vendor sells by use."""
