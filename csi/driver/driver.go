// Package driver is the CSI driver csi.tigera.io: ephemeral volumes of which each is a directory of one pod's own, in which
// felix opens the socket that tells the pod its policy. It makes directories and mounts, and records whose they are; it
// serves nothing to pods itself, stores no data, and knows nothing that is not in the kernel and in the driver's home.
package driver

import (
	"context"
	"log/slog"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/internal/rpc"
)

// Name is the name of the driver, as pods ask for it.
const Name = "csi.tigera.io"

// version is what the driver says it is (spec §7.2).
const version = "0.1"

// Driver serves the Identity and Node services of CSI.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	node string
	log  *slog.Logger

	mu      sync.Mutex // one volume at a time: none takes longer than a few milliseconds
	volumes volumes
}

// New returns the driver of a node, which keeps what it has in a home.
func New(node string, home client.Home, log *slog.Logger) *Driver {
	return &Driver{node: node, log: log, volumes: volumes{home: home, mounts: kernel{}}}
}

// Run serves on a unix socket until ctx ends. A call under way is finished before.
func (d *Driver) Run(ctx context.Context, socket string) error {
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		return err
	}
	d.log.Info("serving", "driver", Name, "socket", socket, "records", d.volumes.home.Records)
	g := rpc.NewServer(nil)
	d.register(g)
	stop := context.AfterFunc(ctx, g.GracefulStop)
	defer stop()
	return g.Serve(l)
}

func (d *Driver) register(g grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(g, d)
	csi.RegisterNodeServer(g, d)
}

// GetPluginInfo tells the driver's name and version.
func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: version}, nil
}

// GetPluginCapabilities is empty: there is no controller, volumes are made where their pods are.
func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

// Probe tells that the driver is there, which is all it needs.
func (d *Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// NodeGetInfo tells which node this is.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

// NodeGetCapabilities is empty: to publish and unpublish is all that can be asked for.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// NodeStageVolume has nothing to do: a volume has nothing that pods share.
func (d *Driver) NodeStageVolume(context.Context, *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume has nothing to do, either.
func (d *Driver) NodeUnstageVolume(context.Context, *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodeGetVolumeStats has nothing to tell: there is no data.
func (d *Driver) NodeGetVolumeStats(context.Context, *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	return &csi.NodeGetVolumeStatsResponse{}, nil
}

// NodeExpandVolume has nothing to do: a volume has no size that matters.
func (d *Driver) NodeExpandVolume(context.Context, *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	return &csi.NodeExpandVolumeResponse{}, nil
}
