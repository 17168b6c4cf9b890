"""Documents of other meshes, read as what they mean there: Istio, SMI and Dapr.

What always holds: a field that would change which requests something is done to, and can't be carried out here, is an
error; one that only asks for something more is a warning with its name. A name of a service becomes that of a function:
`payment.shop` and `payment` in the namespace `shop` are shop/payment, and shop/payment is itself.
"""
