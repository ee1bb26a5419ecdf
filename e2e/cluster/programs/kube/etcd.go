package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

// etcdCommand is one etcd member for one API server beside it. It does not
// sync to disk: its data is worth no more than the cluster, which is rebuilt.
func etcdCommand() *cobra.Command {
	var dir, client, peer string
	command := &cobra.Command{
		Use:          "etcd",
		Short:        "One etcd member, without durability",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			return runEtcd(dir, client, peer)
		},
	}
	command.Flags().StringVar(&dir, "data-dir", "", "directory of the data; made when it is missing")
	command.Flags().StringVar(&client, "listen-client-url", "http://127.0.0.1:2379", "where the API server connects to")
	command.Flags().StringVar(&peer, "listen-peer-url", "http://127.0.0.1:2380", "where other members would connect to")
	if err := command.MarkFlagRequired("data-dir"); err != nil {
		panic(err) // the flag is declared above
	}
	return command
}

func runEtcd(dir, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("--listen-client-url: %w", err)
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("--listen-peer-url: %w", err)
	}
	config := embed.NewConfig()
	config.Dir = dir
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	member, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd in %s: %w", dir, err)
	}
	defer member.Close()
	select {
	case <-genericapiserver.SetupSignalHandler():
		return nil
	case err := <-member.Err():
		return fmt.Errorf("etcd in %s: %w", dir, err)
	}
}
