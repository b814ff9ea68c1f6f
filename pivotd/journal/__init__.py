"""The journal: records that are durable before anything is done or told, and readers that leave no trace."""
