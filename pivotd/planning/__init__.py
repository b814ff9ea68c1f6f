"""From a request and what the domain shows to the pivot that is recorded. Changes nothing."""
