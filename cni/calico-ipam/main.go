// As for calico.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command calico-ipam is the CNI IPAM plugin, for networks whose main plugin is not calico: it asks felix for addresses.
package main

import (
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-net/muslin/cni/plugin"
)

func main() {
	runtime.GOMAXPROCS(1)
	skel.PluginMainFuncs(plugin.IPAM(plugin.RestartTime), plugin.Versions(), "Muslin calico-ipam CNI plugin")
}
