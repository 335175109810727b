package plugin

import "github.com/containernetworking/cni/pkg/version"

// Versions are the versions of the CNI specification that the plugins speak.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}
