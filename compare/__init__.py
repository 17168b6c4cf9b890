"""The two runtimes side by side: one application, one fault script, one clock, and what became of every request.

Everything here looks at the runtimes from outside: it starts them as processes by the command line, asks them over
HTTP, and reads what they wrote. What is measured is recorded raw; figures are computed from the records afterwards.
"""
