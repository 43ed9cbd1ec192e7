"""PostgreSQL behind the domain's database port: one module for each aggregate's tables."""
