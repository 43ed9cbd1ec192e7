-- The role that the service runs as. `migrate`, which owns the tables, gives it its grants.
CREATE ROLE payments LOGIN PASSWORD 'payments';
