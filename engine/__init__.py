"""The stream runtime: it joins functions, state, router and checkpoint into a running process.

The task core decides and returns effects; the driver performs them; configuration, metrics, HTTP and the
command line stand around the two. This is the only layer that may know all the others.
"""
