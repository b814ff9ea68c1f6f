"""The journal: records that are durable before pivotd acts or answers, and readers that leave no trace."""
