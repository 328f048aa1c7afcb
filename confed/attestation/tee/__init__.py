"""One module per kind of TEE; the simulated one and the confinement of its process are here.

Nothing is imported in this file: ``tee.confinement`` has to run before any module that starts threads.
"""
