-- The role that the service runs as. `migrate`, which owns the tables, gives it its grants.
CREATE ROLE payments LOGIN PASSWORD 'payments';
-- The relay keeps its place in a schema of its own, and can read nothing else.
CREATE ROLE payments_relay LOGIN PASSWORD 'payments_relay';
CREATE SCHEMA payments_relay AUTHORIZATION payments_relay;
