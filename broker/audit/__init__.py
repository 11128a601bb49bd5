"""Which labels of a table of variable stars are doubtful, and why."""
