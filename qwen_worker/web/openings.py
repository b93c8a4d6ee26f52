"""What the operator lets be dialled, told before anything is looked up."""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_worker.errors import BadInput
from qwen_worker.hosts import DEFAULT_PORTS, HostList, is_ambiguous, ports_of, told
from qwen_worker.web.addresses import Network

PORTS = ports_of(DEFAULT_PORTS)
ALL_HOSTS = HostList()


@dataclass(frozen=True)
class Openings:
    """Where strangers' servers may be dialled.

    Attributes:
        private: networks that may be dialled although they are not public.
        ports: of TCP.
        hosts: by name or address.
    """

    private: Sequence[Network] = ()
    ports: Sequence[range] = PORTS
    hosts: HostList = ALL_HOSTS

    def check(self, host: str, port: int) -> None:
        """Whether the operator lets this be dialled, as far as it can be told without a look-up.

        Raises:
            BadInput: not this host or port.
        """
        if not any(port in part for part in self.ports):
            raise BadInput(f"its port {port} is closed here: give an address with one of {told(self.ports)}")
        if is_ambiguous(host):
            raise BadInput("its host has numbers that begin with 0: write the address without those zeros")
        try:
            is_open = self.hosts.has(host)
        except ValueError as error:
            raise BadInput("its host is not a valid name: check the address") from error
        if not is_open:
            raise BadInput("its host is not one that this worker fetches from: put the picture on another")
