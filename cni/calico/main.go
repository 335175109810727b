// Command calico is the CNI plugin: it asks felix on this node to wire a pod.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-net/muslin/cni/plugin"
)

func main() {
	skel.PluginMainFuncs(plugin.Main(plugin.RestartTime), plugin.Versions(), "Muslin calico CNI plugin")
}
