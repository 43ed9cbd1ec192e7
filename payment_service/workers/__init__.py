"""Several workers on one machine: processes with an event loop each, on consecutive ports.

parent.py    forks the workers, restarts those that die, ends all together
worker.py    one worker: what it shares with the parent, and how it serves
pages.py     the one metrics port of all workers, in a process of its own

A worker is a replica: it shares nothing with the others but the machine, the memory that was read
before the fork, and the parent. See decision 72.
"""
