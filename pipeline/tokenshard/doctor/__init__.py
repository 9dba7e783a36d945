"""What `tokenshard doctor` looks at: whether this machine, a store and a cluster can do what jobs need of them."""
