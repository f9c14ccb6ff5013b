"""All that runs on Ray: data streams, training jobs, Algorithm 1's stages, the command.

Ray reads its environment when it is imported, so the settings that this package counts on
are made here, before any module imports it. What the user set stays.
"""

import os

_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab is empty without
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; silences its warning
}
if "RAY_ADDRESS" not in os.environ:
    _ENVIRONMENT |= {
        "RAY_AUTH_MODE": "token",  # a local Ray's dashboard and job API ask for a token
        # Ray's own switch, by the name of where it is the default: all its ports on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's C++ side writes warnings about its own actors to our standard error.
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
