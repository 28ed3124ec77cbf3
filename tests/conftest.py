"""Tests import the services' code on the host: it must find settings there, and reach nobody's Redis."""

import os

# Port 1 on loopback: nothing listens. The login in the URL stands for the containers' secret files.
os.environ["REDIS_BROKER_URL"] = os.environ["REDIS_RESULTS_URL"] = "redis://nobody:nothing@127.0.0.1:1/0"
