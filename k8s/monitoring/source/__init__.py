"""What the dashboards, rules, alerts and their tests are made from."""
