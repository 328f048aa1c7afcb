"""Is genuine evidence acceptable? One typed policy for each kind of TEE, and the documents that carry them."""
