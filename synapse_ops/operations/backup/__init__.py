"""What every kind of backup shares: taking, reading and proving one, the catalog, leases, pins, retention, expiry."""
