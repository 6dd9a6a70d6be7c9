/*
 * bench/possync_queue.sql: a till of possync_setup.sql that also pushes.
 */
\o /dev/null
SELECT * FROM possync_add_model('sale', server => 'hq');
SELECT possync_add_child('sale', 'sale_line');
SELECT possync_add_child('sale', 'payment');
SELECT possync_queue('sale');
\o
