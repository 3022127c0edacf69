"""The life of an update: fetched, verified, stored, activated, or refused."""
