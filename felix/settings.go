package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/muslin-net/muslin/felix/environ"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/typha/client"
)

type config struct {
	client.Settings

	Node     string `flag:"node" env:"FELIX_FELIXHOSTNAME,NODENAME" usage:"name of this node; required"`
	Backend  string `flag:"backend" env:"CALICO_NETWORKING_BACKEND" default:"bird" usage:"who brings routes: bird, or vxlan or none, with which no bird runs"`
	Speaker  string `flag:"speaker" env:"CALICO_BGP_SPEAKER" default:"muslin" usage:"program that speaks BGP: muslin for our bird, or bird2 for BIRD 2, which programs what it learns itself"`
	IPIP     string `flag:"ipip-driver" env:"FELIX_IPIPDRIVER" default:"Auto" usage:"what carries IP-in-IP: the Kernel's tunl0, BPF, or Auto for the first of them that works"`
	WarmPool int    `flag:"warm-pool" env:"FELIX_WARMPOOLSIZE" default:"64" usage:"most addresses held ready for pods, of each family and choice of pools; 0 holds none"`
	RunDir   string `flag:"run-dir" default:"/run/calico" usage:"directory of sockets"`
	LibDir   string `flag:"lib-dir" default:"/var/lib/calico" usage:"directory that outlives reboots"`

	Severity string `flag:"log-severity" env:"FELIX_LOGSEVERITYSCREEN" usage:"Trace, Debug, Info, Warning, Error or Fatal, for good; empty means what FelixConfiguration says, or else log-level"`

	HealthEnabled  bool   `flag:"health-enabled" env:"FELIX_HEALTHENABLED" usage:"serve health at the address of the next two, where --health gives none"`
	HealthHost     string `flag:"health-host" env:"FELIX_HEALTHHOST" default:"localhost" usage:"host of that address"`
	HealthPort     string `flag:"health-port" env:"FELIX_HEALTHPORT" default:"9099" usage:"port of that address"`
	MetricsEnabled bool   `flag:"metrics-enabled" env:"FELIX_PROMETHEUSMETRICSENABLED" usage:"serve metrics at the address of the next two, where --metrics gives none"`
	MetricsHost    string `flag:"metrics-host" env:"FELIX_PROMETHEUSMETRICSHOST" usage:"host of that address; empty is every address of the node"`
	MetricsPort    string `flag:"metrics-port" env:"FELIX_PROMETHEUSMETRICSPORT" default:"9091" usage:"port of that address"`
}

// Serve says where health and metrics are served, by the variables that Calico has for it.
func (c *config) Serve() (health, metrics string) {
	if c.HealthEnabled {
		health = net.JoinHostPort(c.HealthHost, c.HealthPort)
	}
	if c.MetricsEnabled {
		metrics = net.JoinHostPort(c.MetricsHost, c.MetricsPort)
	}
	return health, metrics
}

// severity sets how much felix logs, or returns what has FelixConfiguration set it.
func (c *config) severity(d *daemon.Daemon) (follow func(severity string), err error) {
	if c.Severity == "" {
		follow := daemon.Severities(d.Level)
		return func(severity string) {
			if severity == "Info" { // the default: whether anybody has asked for it is not known here
				severity = ""
			}
			follow(severity)
		}, nil
	}
	level, err := daemon.ParseSeverity(c.Severity)
	if err != nil {
		return nil, fmt.Errorf("setting log-severity: %w", err)
	}
	d.Level.Set(level)
	return func(string) {}, nil
}

// following says how felix follows its node's view.
func (c *config) following(d *daemon.Daemon) (client.Config, error) {
	out, err := c.Config(c.Node, os.LookupEnv, d.Log)
	out.View, out.StatePath = client.NodeView, filepath.Join(c.LibDir, "felix", "view")
	out.UnsavedPath, out.SetDeltas = filepath.Join(c.RunDir, "felix-view-unsaved"), true
	return out, err
}

// environment reads the parameters that felix's own environment sets; variables that are settings of the process are not
// among them.
func environment(d *daemon.Daemon) environ.Settings {
	settings, problems := environ.Parse(os.Environ(), daemon.Variables(&config{})...)
	for _, problem := range problems {
		d.Log.Warn("part of the environment does not count", "problem", problem)
	}
	if names := settings.Names(); len(names) > 0 {
		d.Log.Info("the environment sets parameters for this node", "parameters", names)
	}
	return settings
}
