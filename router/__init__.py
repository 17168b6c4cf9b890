"""How a message reaches its address: key groups, frames, logs, ingresses that read and egresses that write.

Order per address and position per input are kept here, and nowhere else. What a message means to a function,
and which state it changes, is not known here.
"""
