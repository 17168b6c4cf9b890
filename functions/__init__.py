"""What a user writes against: the application, its functions, the context, typed state and the test harness.

Knows nothing of how messages travel or where values are stored: a function declared here runs unchanged in
the harness, in one process and across machines. Import from the defining module; `penstock` re-exports what
users need.
"""
