"""The life of a durable operation: started, leased, ended, pre-empted."""
