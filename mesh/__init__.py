"""The request runtime: every invocation is one request, retried, redirected or cut off on its own.

There is no global snapshot. An address takes one turn at a time, and what an invocation has changed and asked for is
committed in one local transaction before its answer is sent. The functions are the same as those of the stream runtime
(`penstock.engine`), which this package never imports.
"""
