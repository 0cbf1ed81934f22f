"""What every kind of backup shares, as decisions and documents: keys, records, catalog, retention, expiry plans."""
