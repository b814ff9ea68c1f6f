"""etcd: what all hosts of a fleet know of a domain. Imported only where [fleet] is configured."""
