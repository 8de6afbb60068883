"""A finished run in daily use: new prices, today's scores, orders, a model card, alarms."""
