"""What docs/monitoring/ holds, made from the metric declarations: rules, alerts and dashboards."""
