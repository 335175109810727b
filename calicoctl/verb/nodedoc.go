package verb

import (
	"errors"
	"time"

	birdclient "github.com/muslin-net/muslin/bird/client"
)

// statusReport is a node's BGP as documents have it.
type statusReport struct {
	Running bool         `json:"running"` // felix
	Bird    birdReport   `json:"bird"`
	Peers   []peerReport `json:"peers"`
}

// birdReport is the speaker.
type birdReport struct {
	Running    bool       `json:"running"`
	Error      string     `json:"error,omitempty"`
	Version    string     `json:"version,omitempty"`
	RouterID   string     `json:"routerID,omitempty"`
	ASNumber   uint32     `json:"asNumber,omitempty"`
	Started    *time.Time `json:"started,omitempty"`
	Configured *time.Time `json:"configured,omitempty"`
	Generation uint64     `json:"generation,omitempty"`
	Drain      string     `json:"drain,omitempty"`
	Warnings   []string   `json:"warnings,omitempty"`
}

// peerReport is a session.
type peerReport struct {
	Name          string             `json:"name"`
	Type          string             `json:"type"`
	Source        string             `json:"source,omitempty"`
	Address       string             `json:"address"`
	Port          uint16             `json:"port,omitempty"`
	ASNumber      uint32             `json:"asNumber"`
	LocalASNumber uint32             `json:"localASNumber,omitempty"`
	LocalAddress  string             `json:"localAddress,omitempty"`
	Passive       bool               `json:"passive,omitempty"`
	State         string             `json:"state"`
	Since         *time.Time         `json:"since,omitempty"`
	Reason        string             `json:"reason,omitempty"`
	LastError     string             `json:"lastError,omitempty"`
	ShadowedBy    string             `json:"shadowedBy,omitempty"`
	WaitingFor    string             `json:"waitingFor,omitempty"`
	UptimeSeconds int64              `json:"uptimeSeconds"`
	Flaps         uint64             `json:"flaps"`
	Received      uint64             `json:"received"`
	Accepted      uint64             `json:"accepted"`
	Advertised    uint64             `json:"advertised"`
	Restarting    bool               `json:"restarting,omitempty"`
	BFD           string             `json:"bfd,omitempty"`
	History       []transitionReport `json:"history,omitempty"`
}

// transitionReport is a change of state; a history has the newest first.
type transitionReport struct {
	At     time.Time `json:"at"`
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"`
}

func statusDocument(s birdclient.Status, failed error, now time.Time) statusReport {
	out := statusReport{Running: true, Bird: birdReport{
		Running: !errors.Is(failed, errNoBird), Version: s.Software, ASNumber: s.ASNumber, Started: moment(s.Started),
		Configured: moment(s.Configured), Generation: s.Generation, Drain: s.Drain, Warnings: s.Warnings,
	}, Peers: peerReports(s.Peers, now)}
	if s.RouterID.IsValid() {
		out.Bird.RouterID = s.RouterID.String()
	}
	if failed != nil {
		out.Bird.Error = failed.Error()
	}
	return out
}

func peerReports(peers []birdclient.Peer, now time.Time) []peerReport {
	out := make([]peerReport, len(peers))
	for i, p := range peers {
		out[i] = peerReport{
			Name: p.Name, Type: p.Type.String(), Source: p.Source, Address: p.Address.String(), Port: p.Port, ASNumber: p.ASNumber,
			LocalASNumber: p.LocalAS, Passive: p.Passive, State: p.State.String(), Since: moment(p.Since), Reason: p.Reason(),
			LastError: p.LastError, ShadowedBy: p.ShadowedBy, WaitingFor: p.WaitingFor, UptimeSeconds: int64(p.Uptime(now).Seconds()),
			Flaps: p.Flaps, Received: p.Received, Accepted: p.Accepted, Advertised: p.Advertised, Restarting: p.Restarting, BFD: p.BFD,
		}
		if p.LocalAddress.IsValid() {
			out[i].LocalAddress = p.LocalAddress.String()
		}
		for _, t := range p.History {
			out[i].History = append(out[i].History, transitionReport{t.At, t.State.String(), t.Reason})
		}
	}
	return out
}

// moment leaves out what never happened.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
