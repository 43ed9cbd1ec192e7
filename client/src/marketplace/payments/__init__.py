"""Everything that a caller of the payment service imports.

`marketplace.payments.v1` holds the messages and stubs generated from `protos/`;
`marketplace.payments.channel` opens channels with the settings that the service expects.
"""
