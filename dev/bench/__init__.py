"""`make bench`: what a call costs, as a multiple of bare handlers that do the same least work.

Not a test: times depend on the machine. The multiples hardly do, because service and bare handlers
are measured in one run, by the processor time of their processes.
"""
