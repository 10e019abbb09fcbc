"""Which network addresses count as public, which the operator allows besides, and which nobody may reach.

The lists are ours: `ipaddress.is_global` calls loopback in NAT64 or 6to4 clothes public on some Python
releases, and changes between them. Called by outbound.py only.

Source: IANA special-purpose address registries (RFC 6890); reliability.md §4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
# In order: Teredo and other protocol assignments, documentation, 6to4, documentation.
_NOT_PUBLIC_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = IPv6Network("::/96")
# Where clouds hand credentials to whoever asks. 168.63.129.16 is a public address, and Azure's.
_METADATA_4 = tuple(
    IPv4Network(text)
    for text in ("169.254.0.0/16", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32")
)
_METADATA_6 = tuple(
    IPv6Network(text)
    for text in ("fd00:ec2::/32", "fd20:ce::254/128", "fd00:42::42/128", "fe80::a9fe:a9fe/128")
)


@dataclass(frozen=True, slots=True)
class AllowList:
    """Hosts and networks the operator opened: names, addresses and CIDR networks."""

    names: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "AllowList":
        """Read the entries of `TUNESMITH_WEBHOOK_ALLOW`; what is no address and no network is a name."""
        names, networks = set(), []
        for entry in entries:
            try:
                networks.append(ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def holds_host(self, host: str) -> bool:
        """Say whether this very name or address literal was listed."""
        return host.lower() in self.names or self.holds_address(parse_literal(host))

    def holds_address(self, address: Address | None) -> bool:
        """Say whether the address lies in a listed network."""
        return address is not None and any(_within(unmapped(address), net) for net in self.networks)


def parse_literal(host: str) -> Address | None:
    """Return the address a host spells in its one canonical notation, None for anything else."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def unmapped(address: Address) -> Address:
    """Return the IPv4 address behind `::ffff:a.b.c.d`, else the address itself."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """Say whether the address belongs to the open internet."""
    address = unmapped(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4 + _METADATA_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def is_metadata(address: Address) -> bool:
    """Say whether the address, or an IPv4 address inside it, serves a cloud's metadata: never reachable."""
    if isinstance(address, IPv6Address) and any(address in network for network in _METADATA_6):
        return True
    inner = _inner(address)
    return inner is not None and any(inner in network for network in _METADATA_4)


def _inner(address: Address) -> IPv4Address | None:
    """Return the IPv4 address that a gateway or tunnel would unpack from this one."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _within(address: Address, network: IPv4Network | IPv6Network) -> bool:
    return address.version == network.version and address in network
