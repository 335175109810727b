// Command csi-node-driver gives pods that ask for it a directory of their own, in which felix serves them their policy. With
// --registrar it is the program beside it that tells kubelet of the driver.
package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/muslin-net/muslin/csi/driver"
	"github.com/muslin-net/muslin/csi/registrar"
	"github.com/muslin-net/muslin/internal/daemon"
)

type config struct {
	Node     string `flag:"nodeid" env:"KUBE_NODE_NAME" usage:"name of this node; required"`
	Endpoint string `flag:"endpoint" usage:"unix socket of the driver (default \"/csi/csi.sock\")"`
	File     string `flag:"nodeagent-config" default:"/etc/calico/csi/nodeagent.json" usage:"JSON file of settings of the driver, if it is there"`

	Registrar bool   `flag:"registrar" usage:"tell kubelet of the driver, in place of being it"`
	Kubelet   string `flag:"kubelet-registration-path" env:"DRIVER_REG_SOCK_PATH" default:"/var/lib/kubelet/plugins/csi.tigera.io/csi.sock" usage:"socket of the driver as kubelet sees it; for --registrar"`
	Plugins   string `flag:"plugin-registration-path" default:"/registration" usage:"kubelet's directory plugins_registry; for --registrar"`
}

func main() {
	var cfg config
	daemon.Main("csi-node-driver", "mounts pods' policy-sync sockets", &cfg, func(ctx context.Context, d *daemon.Daemon) error {
		file, err := driver.ReadConfig(cfg.File)
		if err != nil {
			return err
		}
		endpoint := cmp.Or(cfg.Endpoint, file.Endpoint, "/csi/csi.sock")
		if cfg.Registrar {
			return register(ctx, d, cfg, endpoint)
		}
		node := cmp.Or(cfg.Node, file.Node)
		if node == "" {
			return fmt.Errorf("setting nodeid: the name of this node is missing; give it by --nodeid")
		}
		home, err := file.Layout()
		if err != nil {
			return err
		}
		return driver.New(node, home, d.Log).Run(ctx, endpoint)
	})
}

// register runs the registrar; it is ready when kubelet has taken the driver.
func register(ctx context.Context, d *daemon.Daemon, cfg config, endpoint string) error {
	kubelet := d.Health.Add("kubelet", 0)
	return registrar.Run(ctx, registrar.Config{
		Driver: endpoint, Endpoint: cfg.Kubelet, Directory: cfg.Plugins, Log: d.Log,
		Registered: func(why string) {
			if why == "" {
				kubelet.Ready()
				return
			}
			kubelet.NotReady(why)
		},
	})
}
