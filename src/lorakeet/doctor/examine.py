"""Everything that is looked at, in the order it is shown."""

from lorakeet.doctor import environment, packages, speed
from lorakeet.doctor.finding import Finding


def examine() -> list[Finding]:
    """Examine the machine and the installation; takes a second or two, longer if kernels are still to be compiled."""
    parts = (
        environment.software,
        environment.devices,
        environment.room,
        speed.precision,
        speed.compilers,
        packages.required,
        packages.extras,
        packages.consumers,
    )
    return [finding for part in parts for finding in part()]
