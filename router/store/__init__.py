"""The site's database: members' keys and usage rows. SQLAlchemy Core on embedded SQLite."""
