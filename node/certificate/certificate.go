// Package certificate keeps the certificate by which typha knows the processes of a node.
//
// A node that has none shows typha a token, and only to a typha that the cluster's CA has signed; one that has a certificate
// renews it in good time. Nothing else on the node is involved: the others read the files when they connect, and a connection
// that is there outlives the certificate that it began with.
package certificate

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
)

// Settings say by what a node proves who it is when it has no certificate.
type Settings struct {
	Token     string `flag:"enroll-token" env:"ENROLL_TOKENFILE" default:"/var/run/secrets/typha/token" usage:"file with this pod's service-account token for typha, which a node shows to get its certificate"`
	JoinToken string `flag:"enroll-join-token" env:"ENROLL_JOINTOKENFILE" usage:"file with a join token (typha --new-token), in place of a service-account token where there is no Kubernetes"`
	Trust     string `flag:"enroll-ca" env:"ENROLL_CAFILE" default:"/etc/calico/typha-ca/ca.crt" usage:"CA certificate that a node trusts when it shows its token, PEM"`
}

// Given tells whether there is a token. If not, certificates are brought to the node by other means.
func (s Settings) Given() bool {
	if s.JoinToken != "" {
		return true
	}
	_, err := os.Stat(s.Token)
	return err == nil
}

// Authority gives certificates, and stores them with their key: typha.
type Authority interface {
	// Enroll asks for the first one, Renew for the next one with the one that is there. They return when to ask again.
	Enroll(ctx context.Context, e client.Enrollment) (time.Time, error)
	Renew(ctx context.Context) (time.Time, error)
}

// Keeper has a node's certificate renewed.
type Keeper struct {
	Node      string
	Settings  Settings
	Files     rpc.Files
	Typhas    []string // where typha enrols
	TyphaName string   // in its certificate
	Authority Authority
	Log       *slog.Logger

	next    time.Time // when to renew; zero while that is not known
	trusted []byte    // the CA that the node's processes were told of
	trouble string    // what was said last
}

// attempt is how long typha has to answer.
const attempt = 15 * time.Second

// Ensure returns when there is a certificate that is good for now. While typha cannot be reached it goes on trying; what needs
// somebody's help is an error at once.
func (k *Keeper) Ensure(ctx context.Context) error {
	if !k.Settings.Given() {
		if _, err := os.Stat(k.Files.Cert); err != nil {
			return fmt.Errorf("this node has neither a certificate (%s) nor a token to get one with (%s): project a service-account token for typha into the pod, or give the paths by --cert or --enroll-token",
				k.Files.Cert, k.Settings.Token)
		}
		return nil
	}
	for failed := 0; ; failed++ {
		usable, err := k.refresh(ctx)
		switch {
		case usable:
			return nil // renewing it is Keep's
		case !transient(err) || ctx.Err() != nil:
			return fmt.Errorf("certificate of node %s: %w", k.Node, err)
		}
		k.complain(err, "typha cannot be asked for this node's certificate, trying again")
		if backoff.Pause(ctx, pause(failed)) != nil {
			return fmt.Errorf("certificate of node %s: %w", k.Node, err)
		}
	}
}

// Keep renews the certificate in good time until ctx ends. Whatever fails is tried again: the certificate that is there may do
// for hours, and connections that are there for good.
func (k *Keeper) Keep(ctx context.Context) error {
	if !k.Settings.Given() {
		k.Log.Info("this node's certificate is not renewed: there is no token, so somebody else brings it", "token", k.Settings.Token)
		<-ctx.Done()
		return nil
	}
	for failed := 0; ; {
		_, err := k.refresh(ctx)
		delay := wait(k.next, time.Now())
		if err != nil {
			k.complain(err, "this node's certificate is not renewed, trying again")
			delay = pause(failed)
			failed++
		} else {
			failed, k.trouble = 0, ""
		}
		if backoff.Pause(ctx, delay) != nil {
			return nil
		}
	}
}

// refresh gets a certificate unless the one that is there will do for longer. usable is true also if the one that is there
// could only not be renewed.
func (k *Keeper) refresh(ctx context.Context) (usable bool, err error) {
	trust, err := os.ReadFile(k.trustFile())
	if err != nil {
		return false, fmt.Errorf("CA certificate: %w; mount the ConfigMap with the cluster's CA there, or give its path by --enroll-ca", err)
	}
	lack := k.lack(trust)
	if usable = lack == nil || errors.Is(lack, errDue); usable && !bytes.Equal(trust, k.trusted) {
		if err := client.StoreCA(k.Files, trust); err != nil {
			return false, fmt.Errorf("CA certificate: %w", err)
		}
		k.trusted = trust
	}
	if lack == nil {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	var next time.Time
	if usable {
		if next, err = k.Authority.Renew(ctx); err != nil {
			err = fmt.Errorf("renew: %w", err)
		}
	}
	if !usable || err != nil {
		var refused error
		if next, refused = k.enroll(ctx); refused != nil {
			return usable, errors.Join(err, fmt.Errorf("enrol (%w): %w", lack, refused))
		}
	}
	// Nodes that started together do not renew together.
	k.next, k.trusted = next.Add(-rand.N(max(time.Until(next)/10, 1))).Round(0), trust
	k.Log.Info("this node has a new certificate", "node", k.Node, "file", k.Files.Cert, "because", lack, "next", k.next.UTC().Format(time.RFC3339))
	return true, nil
}

// lack is why a new certificate is needed; errDue if the one that is there can be used to get it.
func (k *Keeper) lack(trust []byte) error {
	cert, err := k.read()
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(trust) {
		return fmt.Errorf("CA certificate %s holds no PEM certificate", k.trustFile())
	}
	now := time.Now().Round(0) // the clock's, whatever happened to timers
	if err := judge(cert, pool, k.Node, now); err != nil {
		return err
	}
	if k.next.IsZero() {
		k.next = renewal(cert)
	}
	if now.Before(k.next) {
		return nil
	}
	return errDue
}

func (k *Keeper) read() (*x509.Certificate, error) {
	body, err := os.ReadFile(k.Files.Cert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there is none")
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM file", k.Files.Cert)
	}
	return x509.ParseCertificate(block.Bytes)
}

// enroll shows typha the token, which is read anew: kubelet replaces it before it ends.
func (k *Keeper) enroll(ctx context.Context) (time.Time, error) {
	e := client.Enrollment{Addresses: k.Typhas, ServerName: k.TyphaName, Trust: k.trustFile(), Files: k.Files, Node: k.Node}
	file, into := k.Settings.Token, &e.ServiceAccountToken
	if k.Settings.JoinToken != "" {
		file, into = k.Settings.JoinToken, &e.JoinToken
	}
	body, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, fmt.Errorf("token: %w", err)
	}
	if *into = strings.TrimSpace(string(body)); *into == "" {
		return time.Time{}, fmt.Errorf("token %s is empty", file)
	}
	return k.Authority.Enroll(ctx, e)
}

// trustFile is the CA's: where none is given, the one that is there already.
func (k *Keeper) trustFile() string {
	if _, err := os.Stat(k.Settings.Trust); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(k.Files.CA); err == nil {
			return k.Files.CA
		}
	}
	return k.Settings.Trust
}

// complain says what went wrong, once.
func (k *Keeper) complain(err error, what string) {
	if text := err.Error(); text != k.trouble {
		k.trouble = text
		k.Log.Warn(what, "node", k.Node, "error", err)
	}
}

// transient tells whether waiting helps.
func transient(err error) bool {
	return errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}
