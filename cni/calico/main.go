// It lives for one call, and does one thing at a time: what it may have of the processors is of no account, and need not be read.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command calico is the CNI plugin: it asks felix on this node to wire a pod.
package main

import (
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-net/muslin/cni/plugin"
)

func main() {
	runtime.GOMAXPROCS(1) // and no thread is started to do half of it
	skel.PluginMainFuncs(plugin.Main(plugin.RestartTime), plugin.Versions(), "Muslin calico CNI plugin")
}
