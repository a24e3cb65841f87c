"""Where blocks come from: a local file, octonode gateways, configured HTTPS gateways."""
