"""`twinpool.v1.ClusterService`: what operators ask a gateway."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from twinpool.protos.twinpool.v1 import cluster_pb2 as pb
from twinpool.protos.twinpool.v1 import cluster_pb2_grpc
from twinpool.router.tenants import TenantCounts


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Answers from what the gateway knows at that moment; asks no worker."""

    def __init__(self, status: Callable[[], pb.GetStatusResponse]) -> None:
        self._status = status

    async def GetStatus(self, message: Any, context: Any) -> pb.GetStatusResponse:  # noqa: N802, ARG002
        return self._status()


def gateway_status(address: str) -> pb.GatewayStatus:
    """This process as a gateway; HTTP is not served yet."""
    return pb.GatewayStatus(grpc=address, http="", pid=os.getpid())


def tenant_statuses(tenants: Mapping[str, tuple[int, TenantCounts]]) -> list[pb.TenantStatus]:
    """(requests that wait, the other counts) by tenant, as they are told."""
    return [pb.TenantStatus(name=name, queued=queued, **asdict(counts)) for name, (queued, counts) in tenants.items()]
