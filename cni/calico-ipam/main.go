// Command calico-ipam is the CNI IPAM plugin, for networks whose main plugin is not calico: it asks felix for addresses.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-net/muslin/cni/plugin"
)

func main() {
	skel.PluginMainFuncs(plugin.IPAM(plugin.RestartTime), plugin.Versions(), "Muslin calico-ipam CNI plugin")
}
