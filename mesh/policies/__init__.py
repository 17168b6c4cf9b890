"""What becomes of a request on its way: retried, redirected, limited, cut off, refused.

Every policy is a small mechanism by itself: the time arrives as an argument, chance as a function that draws a number
from 0 up to 1, the results of requests as outcomes. `settings` says what may be asked for, in the words of Envoy, Istio
and Dapr; `live` holds the policies in force and what they remember; `plan` carries one call through them.
"""
