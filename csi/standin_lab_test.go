//go:build lab

package main_test

import (
	"context"
	"net"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// The suite gets its volumes from a controller. Ephemeral volumes have none: kubelet names them, and says whose they are. Here
// one stands in for it that gives out names with what kubelet adds, and passes everything else on to the driver.

// serveStandIn serves all of it on a socket.
func serveStandIn(t *testing.T, driver *grpc.ClientConn, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	g := grpc.NewServer()
	csi.RegisterControllerServer(g, controller{})
	csi.RegisterIdentityServer(g, identity{driver: csi.NewIdentityClient(driver)})
	csi.RegisterNodeServer(g, passOn{driver: csi.NewNodeClient(driver)})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
}

type controller struct {
	csi.UnimplementedControllerServer
}

func (controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}},
	}}}, nil
}

func (controller) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: req.GetName(), VolumeContext: request("", "").GetVolumeContext()}}, nil
}

func (controller) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

type identity struct {
	csi.UnimplementedIdentityServer
	driver csi.IdentityClient
}

func (i identity) GetPluginInfo(ctx context.Context, req *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return i.driver.GetPluginInfo(ctx, req)
}

func (i identity) GetPluginCapabilities(ctx context.Context, req *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	resp, err := i.driver.GetPluginCapabilities(ctx, req)
	if err == nil {
		resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
		}})
	}
	return resp, err
}

func (i identity) Probe(ctx context.Context, req *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return i.driver.Probe(ctx, req)
}

type passOn struct {
	csi.UnimplementedNodeServer
	driver csi.NodeClient
}

func (p passOn) NodeGetInfo(ctx context.Context, req *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return p.driver.NodeGetInfo(ctx, req)
}

func (p passOn) NodeGetCapabilities(ctx context.Context, req *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return p.driver.NodeGetCapabilities(ctx, req)
}

func (p passOn) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	return p.driver.NodePublishVolume(ctx, req)
}

func (p passOn) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	return p.driver.NodeUnpublishVolume(ctx, req)
}
